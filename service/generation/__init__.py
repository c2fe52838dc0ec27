"""The vocabulary of generations; knows no gRPC, protobuf or LangChain."""
