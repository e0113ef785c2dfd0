"""The flag that every benchmark has. It is defined once, so that several benchmarks can be imported together."""

from absl import flags

JSON_OUT = flags.DEFINE_string("json_out", None, "where the claims go")
