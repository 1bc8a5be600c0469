-- What several texts need of ids, replies and ordering keys; it stands before them (see scripts.py). Pure.
--
-- returns nothing by itself
-- bound   one reply

local function parts(id) return string.match(id, '^(%d+)%-(%d+)$') end

local function before(one, other) -- whether one id is smaller; they have up to 20 digits, more than a number keeps
  local ms, seq = parts(one)
  local ms2, seq2 = parts(other)
  if ms ~= ms2 then return #ms < #ms2 or #ms == #ms2 and ms < ms2 end
  return #seq < #seq2 or #seq == #seq2 and seq < seq2
end

local LAST = '18446744073709551615-18446744073709551615' -- the largest id: no range begins after it

local function after(id) return id ~= LAST and '(' .. id or nil end -- where the range after an entry begins

local LONGEST = 400 -- bytes of a text of ours; to match a pattern takes the square of a longer one of another program's

local function short(text) return text and #text <= LONGEST and text or '' end

local AROUND = 16 -- bytes that a reply has around a text, at most

local function bytes_of(fields) -- in a reply
  local bytes = AROUND * #fields
  for n = 1, #fields do bytes = bytes + #fields[n] end
  return bytes
end

-- Whether a text is an id, as the server takes it.
local function is_id(text)
  for _, part in ipairs({ parts(text) }) do
    if #part > 20 or #part == 20 and part > '18446744073709551615' then return false end
  end
  return parts(text) ~= nil
end

local function map(flat) -- a reply of names and values
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- Where an entry stands in the line of its ordering key.

local function lane(key) return #key .. ':' .. key .. ':' end

local function place(key, member) -- sorts as the ids do; what was put back comes last
  local tilde, ms, seq = string.match(member, '^(~?)(%d+)%-(%d+)$')
  return lane(key) .. tilde .. string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end
