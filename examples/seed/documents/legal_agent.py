"""Analyses the text that the document processor shared."""

from agentfield import Agent
from pydantic import BaseModel

app = Agent("legal-agent")

# --- the sample begins ---
# Agent 2: Legal Analyzer
@app.reasoner()
async def analyze_legal(doc_id: str):
    """Reads text from memory, analyzes legal compliance."""

    # Get text from memory (set by document processor)
    text = await app.memory.get(f"doc_{doc_id}_text")

    # AI analyzes legal compliance
    analysis = await app.ai(
        "Analyze legal compliance",
        text,
        schema=LegalAnalysis
    )

    # Store results for other agents
    await app.memory.set(f"doc_{doc_id}_legal", analysis.dict())

    return analysis.dict()
# --- the sample ends ---


class LegalAnalysis(BaseModel):
    compliant: bool
    clauses: list[str]


# The document processor calls it "analyze".
app.reasoner(name="analyze")(analyze_legal)
