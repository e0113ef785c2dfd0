"""What a program costs on devices that are not there: compiled ahead of time, read from what the compiler wrote."""
