"""Web page that segments cases. The page needs the pip extra `app`."""
