"""A page in the browser that segments cases. It needs the extra `app`."""
