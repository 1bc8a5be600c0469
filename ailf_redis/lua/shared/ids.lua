-- Ids, replies and ordering keys; loaded before the scripts that need them (see scripts.py). Pure.
--
-- returns nothing by itself
-- bound   one reply

local function parts(id) return string.match(id, '^(%d+)%-(%d+)$') end

-- Tell whether one id is smaller. The halves of an id have up to 20 digits, more than a double holds.
local function before(one, other)
  local ms, seq = parts(one)
  local ms2, seq2 = parts(other)
  if ms ~= ms2 then return #ms < #ms2 or #ms == #ms2 and ms < ms2 end
  return #seq < #seq2 or #seq == #seq2 and seq < seq2
end

local LAST = '18446744073709551615-18446744073709551615' -- the largest id: no range begins after it

-- Return where the range after an entry begins, or nil after the largest id.
local function after(id) return id ~= LAST and '(' .. id or nil end

-- Return the smallest larger id, or nil after the largest. A half has more digits than a double holds, so it is counted
-- up as text.
local function successor(id)
  local ms, seq = parts(id)
  local function one_more(digits)
    local head, last, nines = string.match(digits, '^(.-)([0-8]?)(9*)$')
    return head .. (last == '' and '1' or string.char(string.byte(last) + 1)) .. string.rep('0', #nines)
  end
  local LARGEST_HALF = '18446744073709551615'
  if seq ~= LARGEST_HALF then return ms .. '-' .. one_more(seq) end
  return ms ~= LARGEST_HALF and one_more(ms) .. '-0' or nil
end

-- The longest text of ours in bytes. To match a pattern takes quadratic time, and another program's text may be longer.
local LONGEST = 400

local function short(text) return text and #text <= LONGEST and text or '' end

local OVERHEAD = 16 -- the most bytes that a reply adds to a text

-- Return how many bytes a reply has for these fields.
local function bytes_of(fields)
  local bytes = OVERHEAD * #fields
  for n = 1, #fields do bytes = bytes + #fields[n] end
  return bytes
end

-- Tell whether the server accepts this text as an id.
local function is_id(text)
  for _, part in ipairs({ parts(text) }) do
    if #part > 20 or #part == 20 and part > '18446744073709551615' then return false end
  end
  return parts(text) ~= nil
end

-- Make a table of a reply of names and values.
local function map(flat)
  local values = {}
  for i = 1, #flat, 2 do values[flat[i]] = flat[i + 1] end
  return values
end
