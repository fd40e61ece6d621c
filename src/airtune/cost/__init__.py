"""What an assignment costs on a device: FLOPs, bytes, seconds, memory and joules; numpy only."""

from airtune.cost.shapes import bert_like, gpt2_like, llama_like

__all__ = ["bert_like", "gpt2_like", "llama_like"]
