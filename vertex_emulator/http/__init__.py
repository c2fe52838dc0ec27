"""Google's REST form and OpenAI's protocol."""
