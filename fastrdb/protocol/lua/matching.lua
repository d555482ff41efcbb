-- Put in front of the scripts of the protocol, behind common.lua: which keys a head and a filter reach.

local MOST_STEPS = 20000 -- so many letters of globs one script compares: what is left counts as a match

-- Is the byte a part of a character, but not its first one?
local function continues(byte)
  return byte and byte >= 128 and byte < 192
end

-- Where no step is left, more is barred or deleted, never less. So no argument of a caller can hold the server up.
local steps_left = MOST_STEPS

-- Where `piece`, in which `?` is any one character, ends in `text` if it begins at `from`; nil if it does not stand there.
local function stands_at(text, piece, from)
  local at = from
  for i = 1, #piece do
    local wanted, found = string.byte(piece, i), string.byte(text, at)
    steps_left = steps_left - 1
    if not found or (wanted ~= found and wanted ~= 63) then return nil end
    at = at + 1
    while wanted == 63 and continues(string.byte(text, at)) do at = at + 1 end
  end
  return at - 1
end

-- Where `piece` begins and ends first at or behind `from`.
local function find_piece(text, piece, from)
  if not string.find(piece, '?', 1, true) then
    steps_left = steps_left - #text / 16 - 1
    return string.find(text, piece, from, true)
  end
  for at = from, #text do
    if steps_left < 0 then return nil end
    local stop = not continues(string.byte(text, at)) and stands_at(text, piece, at)
    if stop then return at, stop end
  end
end

-- Does a value end here? At the end of the key, before a separator, before the mark of the value's type.
local function value_ends(text, at)
  return at > #text or string.find(':?&', string.sub(text, at, at), 1, true) or string.sub(text, at, at + 1) == '%a'
end

-- Does `text` match the glob of a prefix? A glob ends in `*`, or in `$`: what matches last is a whole value then. Each
-- piece between two `*` is found leftmost in turn: no backtracking, so no glob and no key can hold the server up.
local function compare(text, glob)
  local at, from, first = 1, 1, true
  while true do
    local star = string.find(glob, '*', from, true)
    if not star then break end
    local piece, stop = string.sub(glob, from, star - 1), nil
    if first then stop = stands_at(text, piece, 1) else stop = select(2, find_piece(text, piece, at)) end
    if not stop then return false end
    at, from, first = stop + 1, star + 1, false
  end
  if from > #glob then return true end
  local last = string.sub(glob, from, -2)
  if first then
    local stop = stands_at(text, last, 1)
    return stop ~= nil and value_ends(text, stop + 1) and true or false
  end
  while true do
    local begun, stop = find_piece(text, last, at)
    if not begun then return false end
    if value_ends(text, stop + 1) then return true end
    at = begun + 1
  end
end

local function fits(text, glob)
  return compare(text, glob) or steps_left < 0 -- mechanism: steps-bounded
end

-- Does `filter` let `key` through, which begins with `head`? '' lets all through, '=' only the head itself; else what
-- follows the head must fit the glob. What a long key's value was cannot be read from its digest, `%h`: it is let through.
local function reaches(head, filter, key)
  if not begins(key, head) then return false end
  if filter == '' then return true end
  if filter == '=' then return #key == #head end
  -- A filter of another version of fastrdb, in a barrier of its writer, lets all through: more is barred, never less.
  if not string.find(filter, '[*$]$') or string.find(filter, '\n', 1, true) then return true end
  local digest = string.find(key, '%h', #head + 1, true)
  if digest and (filter ~= '$' or digest == #head + 1) then return true end
  return fits(string.sub(key, #head + 1), filter)
end
