-- How room is made in a stream; it stands before the texts of those that do (see scripts.py).
--
-- KEYS[1] stream
-- KEYS[2] meta     hash: "evicted" how many entries were removed that a group had not settled,
--                  "epoch" what tells dedup ids of a stream that was deleted from those of this one
-- ARGV[1] max_len, or '' for any   ARGV[2] max_age_ms, or ''   ARGV[3] hard (1 or 0)
-- ARGV[4..7]       what the keys of every group's due, bell, notes, queue begin with
-- returns nothing by itself
-- writes  KEYS[1] without TTL: data; KEYS[2] without TTL: it goes with the stream

local stream, meta = KEYS[1], KEYS[2]
local max_len, max_age, hard = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'

-- The groups: name, the id up to which it has read, its oldest entry that is out.
local function groups()
  local found = {}
  local infos = redis.pcall('XINFO', 'GROUPS', stream)
  for _, flat in ipairs(not infos.err and infos or {}) do
    local each = map(flat)
    local out = redis.call('XPENDING', stream, each.name)[2]
    found[#found + 1] = { name = each.name, read = each['last-delivered-id'], out = out }
  end
  return found
end

local function settled(id, all) -- by all groups, as far as reading and the oldest that is out tell
  for _, each in ipairs(all) do
    if before(each.read, id) then return false end
    -- The oldest that is out may be one that is no longer in the stream; those after it are looked at one by one.
    if each.out and not before(id, each.out) and redis.call('XPENDING', stream, each.name, id, id, 1)[1] then return false end
  end
  return true
end

local function unsettled(id, all) -- by some group, exactly
  for _, each in ipairs(all) do
    if before(each.read, id) or redis.call('XPENDING', stream, each.name, id, id, 1)[1] then return 1 end
  end
  return 0
end

-- Remove the oldest entries down to so many, and those that are too old; return how many, and how many of them unsettled.
local function trim(keep)
  local PAGE = 100
  local removed, lost = 0, 0
  local oldest = max_age and string.format('%.0f-0', math.max(0, now - max_age))
  local all = groups()
  while true do
    local excess = keep and redis.call('XLEN', stream) - keep or 0
    local cut, taken, lost_entries = nil, 0, {}
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', PAGE)) do
      local id = entry[1]
      local goes = taken < excess or (oldest and before(id, oldest))
      local done = goes and settled(id, all)
      if not (goes and (done or hard)) then break end
      if not done and unsettled(id, all) == 1 then
        lost = lost + 1
        lost_entries[#lost_entries + 1] = entry
      end
      cut, taken = id, taken + 1
    end
    if not cut then break end
    local ms, seq = parts(cut)
    redis.call('XTRIM', stream, 'MINID', ms .. '-' .. string.format('%.0f', seq + 1))
    for _, entry in ipairs(lost_entries) do
      for _, each in ipairs(all) do
        let_find(stream, each.name, entry, now, ARGV[4] .. each.name, ARGV[5] .. each.name, ARGV[6] .. each.name, ARGV[7] .. each.name)
      end
    end
    removed = removed + taken
    if taken < PAGE then break end
  end
  if lost > 0 then redis.call('HINCRBY', meta, 'evicted', lost) end
  return removed, lost
end
