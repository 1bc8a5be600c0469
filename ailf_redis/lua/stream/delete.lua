-- Delete a stream and the helper keys of its groups; the server frees their memory in a thread of its own.
--
-- KEYS[1] stream
-- KEYS[2] meta     (see retention.lua)
-- ARGV    the prefixes of the helper keys of every group, which the group's name follows; the hash tag is the stream's
-- returns how many groups it had
-- writes  deletes KEYS[1], KEYS[2] and the helper keys of its groups
-- bound   the groups of the stream, one command for each

redis.call('UNLINK', KEYS[2])
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then
  if string.find(tostring(groups.err), 'no such key', 1, true) then return 0 end -- tostring: for fakeredis
  return groups
end
for _, info in ipairs(groups) do
  local keys = {}
  for at, prefix in ipairs(ARGV) do keys[at] = prefix .. info[2] end
  redis.call('UNLINK', unpack(keys))
end
redis.call('UNLINK', KEYS[1])
return #groups
