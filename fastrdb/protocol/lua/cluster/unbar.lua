-- Stamp names of tags whose writer has ended, then remove barriers: at each moment one of the two refuses a fill.
-- KEYS: barriers; and tags, tagged, ended, columns if there are names
-- ARGV: lease ms; then two lists, each as its length and its items: names to stamp, barriers to remove
-- Result: 1 if all of the barriers stood until now, else 0
local following = lists(2)
stamp(tag_keys(2), KEYS[1], tonumber(ARGV[1]), following(1))
return remove_barriers(KEYS[1], following(1)) and 1 or 0
