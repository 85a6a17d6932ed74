"""Pages: who owns which, what they hold, and the arrays they live in."""
