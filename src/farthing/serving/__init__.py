"""A trained model for others to try: over HTTP as OpenAI's clients know it, and in the terminal."""
