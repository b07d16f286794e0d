"""The command explain: maps of where an answer comes from, and checks of whether they are true."""
