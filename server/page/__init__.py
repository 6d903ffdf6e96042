"""A page that verifies a bundle and scores records in a browser, without any server of ours."""
