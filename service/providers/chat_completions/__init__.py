"""OpenAI, Azure, and all that speak their protocol, Chat Completions."""
