"""Every key of config.env, one section a module: meaning, default, example."""
