import lib.b as chosen
