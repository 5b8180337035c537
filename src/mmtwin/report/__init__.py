"""Reports: a recording as one self-contained HTML page (`document` gathers the numbers, `page.render` makes the page of them), and a what-if as a drawing."""
