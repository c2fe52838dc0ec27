"""The command `tokenwire`. Each subcommand lives with what it runs; here is only the list of them."""
