-- Remove a delayed entry before its time, for all groups, and free the dedup id that it was added under.
--
-- KEYS[1] stream
-- ARGV    id, the prefix of the keys of dedup ids, then the prefixes of every group's due, bell, notes, queue and
--         parked keys, which the group's name follows
-- returns 1, or 0 if there is no such entry, and then nothing is changed
-- writes  KEYS[1] without TTL; the helper keys of the groups (see group.lua); the key of the dedup id (see add.lua),
--         whose TTL stays
-- bound   the groups of the stream

local stream, id = KEYS[1], ARGV[1]
local entry = redis.call('XRANGE', stream, id, id)[1]
local options = entry and options_of(entry[2], 1)
if not options or options.at <= now then return 0 end
redis.call('XDEL', stream, id)

-- Free a dedup id. The call that added the entry may be repeated: it gets the same reply and adds nothing. Any other
-- call adds an entry.
local function free(once)
  if string.sub(once, 1, #ARGV[2]) ~= ARGV[2] then return end
  local stored = redis.pcall('GET', once)
  if type(stored) == 'string' and string.match(short(stored), '^%S+ %S+ (%S+)$') == entry[1] then
    redis.call('SET', once, stored .. ' cancelled', 'KEEPTTL')
  end
end
if entry[2][3] == 'ailf.once' then free(entry[2][4]) end

for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local name = map(flat).name
  on_entry_removed(stream, name, entry[1], ARGV[3] .. name, ARGV[4] .. name, ARGV[5] .. name, ARGV[6] .. name,
    ARGV[7] .. name)
end
return 1
