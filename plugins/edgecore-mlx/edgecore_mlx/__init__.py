"""MLX behind edgecore's contract: `backend.toml` beside this file is the light half, `hooks` the heavy one."""
