-- Every script on a tenant begins with this. What each is asked is packed by ../wire.rs; layout and invariants are
-- told in ../../redis.rs.
--
-- KEYS[1]  the epoch marker of the tenant's bucket: all keys of a call carry its hash tag, so they lie in one slot
-- ARGV     epoch; root of the tenant's keys, which is the key of the tenant itself; numbers; what the script is asked
--          beside them
--
-- Numbers are doubles one after the other (little-endian): one C function reads or writes all of them. Those of the
-- question begin with: number of the epoch, a number that nobody had, now (µs, -1: this server's clock), not after
-- (µs, -1: no bound), 1 if the bucket must be in order, lease (µs).
-- Quantities are whole numbers within ±(2^53 - 1), which doubles hold exactly; sums stop there.
--
-- Tables and functions made at each call are what a script's time is spent on, so the scripts that every request runs
-- make few: the functions of common.lua are only made where something rare is to be done.

local call = redis.call
local ROOT = ARGV[2]
local MAX = 9007199254740991

-- A subject's counters are one list of numbers. Its head: number of the epoch, incarnation, and of the tenant's own:
-- drain sequence, instant of the latest event, whose counters exist (+1: keys', +2: users'), when something is due;
-- of the others: when they are to be written with a new expiry (in DUE).
local INC, DRAINS, LATEST, SCOPES, DUE, FIRST = 2, 3, 4, 5, 6, 7
-- From FIRST on, six numbers a counter: feature, start, end, settled, reserved, hard limit last seen (-1: none).
local STRIDE = 6

-- What one function takes and gives must find room on Lua's stack, which has 8,000 places.
local AT_ONCE = 3000

local function read(raw, from, count)
  if count > AT_ONCE then
    local list = {}
    for index = 1, count do list[index] = struct.unpack('<d', raw, from + 8 * (index - 1)) end
    return list
  end
  -- A part of a constant takes less than what is put together.
  local format = count <= 64 and string.sub('<dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', 1, count + 1)
  local list = { struct.unpack(format or '<' .. string.rep('d', count), raw, from) }
  list[count + 1] = nil -- where it stopped reading
  return list
end

local function written(list)
  local count = #list
  if count > AT_ONCE then
    local parts = {}
    for index = 1, count do parts[index] = struct.pack('<d', list[index]) end
    return table.concat(parts)
  end
  local format = count <= 64 and string.sub('<dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', 1, count + 1)
  return struct.pack(format or '<' .. string.rep('d', count), unpack(list))
end

local q = read(ARGV[3], 1, #ARGV[3] / 8)
local now = q[3]
if now < 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local marker = call('GET', KEYS[1])
if marker ~= ARGV[1] and (q[5] == 1 or marker ~= '?' .. ARGV[1]) then
  return cmsgpack.pack({ status = 'epoch', now = now })
end
if q[4] >= 0 and now > q[4] then
  return cmsgpack.pack({ status = 'late', now = now })
end
