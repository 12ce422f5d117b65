"""An HTTP server with OpenAI's completions interface, whose sessions sleep."""
