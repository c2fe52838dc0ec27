"""Gemini, over gRPC and over HTTP."""
