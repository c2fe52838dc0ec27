"""What a stop has to know of callers: their connections, and what is still on its way between them and us."""
