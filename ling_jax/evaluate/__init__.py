"""Evaluation of a saved model: perplexity of texts, multiple choice, verified answers (`python -m launch.evaluate`)."""
