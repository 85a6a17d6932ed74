"""The commands, one a file; installed as numbadsd.cli."""
