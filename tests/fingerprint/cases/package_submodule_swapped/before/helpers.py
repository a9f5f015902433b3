import lib.a as chosen
