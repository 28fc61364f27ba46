"""Web page that segments cases. The page needs the extra `app`."""
