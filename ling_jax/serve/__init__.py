"""An engine behind HTTP in the protocol of OpenAI's clients (docs/serving.md)."""
