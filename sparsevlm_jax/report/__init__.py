"""What a run did: its cost, a trace of every decision, tables and pictures of both."""
