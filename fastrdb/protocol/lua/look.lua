-- What a server of a cluster says of itself.
-- KEYS: none
-- ARGV: none
-- Result: {history, what it evicts, see evicts()} | {'', why it does not tell}
local own, why = history()
return own and {own, evicts()} or {'', why}
