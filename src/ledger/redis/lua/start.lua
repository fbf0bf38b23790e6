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

-- How 64 doubles are written: a part of a constant takes less than what is put together. Lists that are no longer are
-- read and written where they are needed, the others by the functions here.
local DOUBLES = '<dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd'
local SHORT = 64

-- What one function takes and gives must find room on Lua's stack, which has 8,000 places.
local function read(raw, from, count)
  if count > 3000 then
    local list = {}
    for index = 1, count do list[index] = struct.unpack('<d', raw, from + 8 * (index - 1)) end
    return list
  end
  local list = { struct.unpack('<' .. string.rep('d', count), raw, from) }
  list[count + 1] = nil -- where it stopped reading
  return list
end

local function written(list)
  local count = #list
  if count > 3000 then
    local parts = {}
    for index = 1, count do parts[index] = struct.pack('<d', list[index]) end
    return table.concat(parts)
  end
  return struct.pack('<' .. string.rep('d', count), unpack(list))
end

local asked = #ARGV[3] / 8
local q = asked <= SHORT and { struct.unpack(string.sub(DOUBLES, 1, asked + 1), ARGV[3]) } or read(ARGV[3], 1, asked)
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
