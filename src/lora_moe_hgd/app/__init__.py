"""Web page that segments cases. It needs the extra `app`."""
