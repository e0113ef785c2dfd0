"""The cost of a program on absent devices: ahead-of-time compilation, and analysis of the compiled program."""
