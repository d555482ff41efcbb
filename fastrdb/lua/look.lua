-- What a server of a cluster says of itself.
-- KEYS: none
-- ARGV: none
-- Result: {history} | {'', why it does not tell}
local own, why = history()
return own and {own} or {'', why}
