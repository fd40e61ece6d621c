"""GGUF files, in and out: read as a base model, written as a model or an adapter for llama.cpp."""
