"""What it costs to find out who calls; calls that are refused, whom they hold up, and what their time tells."""
