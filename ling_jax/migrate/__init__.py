"""Migration from Ling 2.0 (GQA) to the Lightning + MLA hybrid: layer conversions, and stages that train in between."""
