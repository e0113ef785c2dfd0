"""`python -m ling_jax` says where the programs are."""

print(
    "ling_jax is a library (docs: README.md). Its programs, such as launch.pretrain and launch.generate, and their "
    "configs are run from a checkout of the repository: `python -m launch` lists them there."
)
