"""Has a document analysed by two other agents."""

from agentfield import Agent

app = Agent("document-processor")

# --- the sample begins ---
# Agent 1: Document Processor
@app.reasoner()
async def process_document(doc_id: str):
    """Processes document and stores results for other agents."""

    # Extract text
    text = await extract_text(doc_id)
    await app.memory.set(f"doc_{doc_id}_text", text)

    # Call legal analyzer
    legal = await app.call("legal-agent.analyze", doc_id=doc_id)

    # Call financial analyzer
    financial = await app.call("financial-agent.analyze", doc_id=doc_id)

    return {"legal": legal, "financial": financial}
# --- the sample ends ---


async def extract_text(doc_id: str) -> str:
    """Stands for a document store and its text extraction."""
    return f"Contract {doc_id}: the supplier pays a penalty of 5,000 EUR for late delivery, payable in 30 days."
