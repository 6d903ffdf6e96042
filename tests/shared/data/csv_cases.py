"""CSV texts of three values a record, and what every reader of ours makes of them."""

RIGHT = {
    "bare": ("1,2,3\n4,5,6\n", [[1, 2, 3], [4, 5, 6]]),
    "header": ("a,b,c\n1,2,3\n", [[1, 2, 3]]),
    "numbers": ("a,b,c\r\n1, 2.5,-3e2\r\n\r\n.5,6.,+7\r\n", [[1, 2.5, -300], [0.5, 6, 7]]),
    "quoted": ('"1","2","3"\n', [[1, 2, 3]]),
    "quoted header": ('"a, first",b,c\n1,"2",3\n', [[1, 2, 3]]),
    "mark": ("\ufeffa,b,c\n1,2,3", [[1, 2, 3]]),
    "mark, bare": ("\ufeff1,2,3\n", [[1, 2, 3]]),
    "header again": ("a,b,c\n1,2,3\na,b,c\n4,5,6\n", [[1, 2, 3], [4, 5, 6]]),
    "word in the first line": ("1,2,x\n3,4,5\n", [[3, 4, 5]]),
    "gap in the first line": ("1,,3\n1,2,3\n", [[1, 2, 3]]),
    "in order": ("v8,v9,v10\n1,2,3\n", [[1, 2, 3]]),
    "other names": ("b2,a1,c0\n1,2,3\n", [[1, 2, 3]]),
    "large": ("1,2,1e149\n", [[1, 2, 1e149]]),
}
"""By name: the text, and its records."""

WRONG = {
    "word": ("1,2,3\n1,secret,3\n", "number"),
    "gap": ("a,b,c\n1,,3\n", "number"),
    "gap in bare": ("1,2,3\n5,,6\n", "number"),
    "words": ("a,b,c\nd,e,f\n", "number"),
    "underscore": ("1,2,3\n1_0,2,3\n", "number"),
    "other digits": ("1,2,3\n\u0661,2,3\n", "number"),
    "hexadecimal": ("1,2,3\n0x10,2,3\n", "number"),
    "missing": ("1,2,3\nNA,2,3\n", "number"),
    "short": ("a,b,c\n1,2\n", "width"),
    "long": ("a,b,c\n1,2,3\n1,2,3,4,5\n", "width"),
    "short bare": ("1,2,3\n1,2\n", "width"),
    "semicolons": ("a,b,c\n1;2;3\n", "width"),
    "nan": ("a,b,c\n1,nan,3\n", "finite"),
    "infinite": ("1,2,-inf\n", "finite"),
    "overflow": ("1,2,1e200\n", "finite"),
    "beyond a double": ("1,2,1e999\n", "finite"),
    "out of order": ("v2,v1,v0\n1,2,3\n", "order"),
    "open quote": ('1,2,3\n1,"2,3\n', "encoding"),
    "after a quote": ('1,2,3\n1,"2"2,3\n', "encoding"),
    "line end within": ("1,2,3\n1,2,3\r4,5\n", "encoding"),
}
"""By name: the text, and the reason why every reader refuses it."""
