"""``juggler-llama-server``: the llama.cpp server of the ``xllamacpp`` wheel behind llama-server's command line."""
