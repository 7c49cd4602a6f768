"""The paper's experiments. Each module's ``run(context)`` returns a dict that JSON can hold."""
