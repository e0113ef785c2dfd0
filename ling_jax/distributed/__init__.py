"""Several processes that train one model: how they meet, what they compare, how they end."""
