"""Finds the financial terms in the text that the document processor shared."""

from agentfield import Agent
from pydantic import BaseModel

app = Agent("financial-agent")

# --- the sample begins ---
# Agent 3: Financial Analyzer
@app.reasoner()
async def analyze_financial(doc_id: str):
    """Reads text from memory, extracts financial terms."""

    # Get text from memory
    text = await app.memory.get(f"doc_{doc_id}_text")

    # AI extracts financial terms
    terms = await app.ai(
        "Extract financial terms and obligations",
        text,
        schema=FinancialTerms
    )

    # Store results
    await app.memory.set(f"doc_{doc_id}_financial", terms.dict())

    return terms.dict()
# --- the sample ends ---


class FinancialTerms(BaseModel):
    amounts: list[str]
    due_days: int | None


# The document processor calls it "analyze".
app.reasoner(name="analyze")(analyze_financial)
