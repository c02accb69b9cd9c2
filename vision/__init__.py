"""Post-training of multimodal language models: the decision is the next token."""
