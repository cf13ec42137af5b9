--- The options before a key: what each demands, held to tables of what sshd(8) says, and to ssh-keygen and sshd themselves where they can
-- be asked.

local core = require "korv.core"
local keyoptions = require "korv.keyoptions"
local keys = require "korv.keys"
local sshd = require "spec.peers.sshd"
local support = require "spec.support"

local GIVEN = { address_bytes = core.address_bytes }
local FULL = os.getenv "KORV_FULL" ~= nil

local function read(name, value) return keyoptions.read({ { name = name, value = value } }, GIVEN) end

local function refused(pattern, name, value)
  local options, what = read(name, value)
  assert.is_nil(options, value)
  assert.matches(pattern, what)
end

local function admits(options, address, now) return (keyoptions.admit(options, address, now or 0)) end

math.randomseed(tonumber(os.getenv "KORV_SEED") or 20260714)

local function one_of(list) return list[math.random(#list)] end

describe("from=", function()
  for value, list in pairs {
    ["127.0.0.1"] = { ["127.0.0.1"] = true, ["127.0.0.2"] = false, ["127.0.0.10"] = false, ["::1"] = false },
    ["10.0.0.1,10.0.0.2"] = { ["10.0.0.1"] = true, ["10.0.0.2"] = true, ["10.0.0.3"] = false },
    ["10.0.0.0/8"] = { ["10.255.255.255"] = true, ["11.0.0.0"] = false, ["9.255.255.255"] = false, ["a00::"] = false },
    ["10.0.0.128/25"] = { ["10.0.0.127"] = false, ["10.0.0.128"] = true, ["10.0.0.255"] = true },
    ["10.0.0.4/30"] = { ["10.0.0.3"] = false, ["10.0.0.4"] = true, ["10.0.0.7"] = true, ["10.0.0.8"] = false },
    ["0.0.0.0/0"] = { ["1.2.3.4"] = true, ["::1"] = false },
    ["10.0.0.1/32"] = { ["10.0.0.1"] = true, ["10.0.0.0"] = false },
    ["!10.0.0.1,10.0.0.0/24"] = { ["10.0.0.1"] = false, ["10.0.0.2"] = true, ["10.0.1.2"] = false },
    ["10.0.0.0/24,!10.0.0.1"] = { ["10.0.0.1"] = false, ["10.0.0.2"] = true },
    ["*,!10.*"] = { ["10.0.0.1"] = false, ["11.0.0.1"] = true, ["2001:db8::1"] = true },
    ["!10.0.0.1"] = { ["10.0.0.1"] = false, ["10.0.0.2"] = false },
    ["!*,10.0.0.1"] = { ["10.0.0.1"] = false },
    ["10.0.0.?"] = { ["10.0.0.1"] = true, ["10.0.0.12"] = false, ["10.0.0."] = false },
    ["10.0.*.1"] = { ["10.0.0.1"] = true, ["10.0.99.1"] = true, ["10.0.0.11"] = false },
    ["2001:db8::/32"] = { ["2001:db8:ffff::1"] = true, ["2001:db9::"] = false, ["10.0.0.1"] = false },
    ["2001:DB8::1"] = { ["2001:db8::1"] = true, ["2001:db8::2"] = false },
    ["2001:db8:0:0::1"] = { ["2001:db8::1"] = true },
    ["2001:DB8:*"] = { ["2001:db8::1"] = true, ["2001:db9::1"] = false },
    ["::ffff:10.0.0.1"] = { ["10.0.0.1"] = true },
    ["10.0.0.1 , 10.0.0.2"] = { ["10.0.0.1"] = true, ["10.0.0.2"] = true },
    ["fe80::/10"] = { ["fe80::1%eth0"] = true, ["fec0::1"] = false },
    ["*,!fe80::/10"] = { ["fe80::1%eth0"] = false, ["10.0.0.1"] = true },
    ["*"] = { ["10.0.0.1"] = true, [""] = false, ["unknown"] = false },
  } do
    it(value, function()
      local options = assert(read("from=", value))
      for address, allowed in pairs(list) do
        assert.equal(allowed, admits(options, address), address)
        local _, why = keyoptions.admit(options, address, 0)
        assert.equal(not allowed and "may not be used from this address" or nil, why)
      end
    end)
  end

  it("is refused where it cannot be honoured: a name would have to be looked up, a negated one would keep out nobody", function()
    for _, name in ipairs { "host.example", "*.example", "!*.example,*", "!*.de,*", "cafe", "*.de", "dead.beef", "dead.bee?", "10",
      "127.1" } do
      refused("is no address, pattern of one or network; host names are not looked up", "from=", name)
    end
    for _, wrong in ipairs { "", ",", "10.0.0.1,", "!", "*,!", "10.0.0.256", "10.0.0.1:22", "[::1]", "fe80::1%eth0/64x" } do
      refused("^from: ", "from=", wrong)
    end
    for _, wrong in ipairs { "10.0.0.0/33", "2001:db8::/129", "10.0.0.0/", "/8", "10.0.0.0/-1", "10.0.0.0/8/8", "*/8", "10.0.0.0/1e1",
      "::ffff:10.0.0.0/104", "10.0.0.0/99999999999999999999" } do
      refused("is no network", "from=", wrong)
    end
    for _, wrong in ipairs { "10.0.0.1/8", "10.0.0.1/31", "2001:db8::1/64" } do refused("has bits beyond its length", "from=", wrong) end
  end)

  it("is refused where it is given twice", function()
    local list = { { name = "from=", value = "*" }, { name = "from=", value = "10.0.0.1" } }
    assert.same({ nil, "from: it is given twice" }, { keyoptions.read(list, GIVEN) })
  end)
end)

describe("expiry-time=", function()
  local function expires(value) return assert(read("expiry-time=", value)).expires end

  it("is a time of UTC's with a Z", function()
    for value, seconds in pairs {
      ["19700101Z"] = 0, ["20000229Z"] = 951782400, ["20240229235959Z"] = 1709251199, ["202502282359z"] = 1740787140,
      ["20380119031408Z"] = 2147483648, ["99991231235959Z"] = 253402300799, ["21000228Z"] = 4107456000,
    } do
      assert.equal(seconds, expires(value), value)
      assert.equal("integer", math.type(expires(value)))
    end
  end)

  -- Also those that a change of the clocks leaves out or has twice, of which either will do.
  for _, zone in ipairs { "UTC0", "CET-1CEST,M3.5.0,M10.5.0/3", "EST5EDT,M3.2.0,M11.1.0", "<+0545>-5:45", "AEST-10AEDT,M10.1.0,M4.1.0" } do
    it("is a time of the machine's without one: TZ=" .. zone, function()
      local program = [[
        local keyoptions = require "korv.keyoptions"
        for value in io.lines() do
          local options = keyoptions.read({ { name = "expiry-time=", value = value } }, {})
          print(options and options.expires or "none")
        end]]
      local values, dates = {}, {}
      for i = 1, 200 do
        local year, month, day = math.random(1990, 2037), math.random(12), math.random(28)
        local hour, minute = math.random(4, 23), math.random(0, 59) -- clocks change before 4
        values[i] = ("%04d%02d%02d%02d%02d"):format(year, month, day, hour, minute)
        dates[i] = ("%04d-%02d-%02d %02d:%02d:00"):format(year, month, day, hour, minute)
      end
      local env = { TZ = zone, LUA_PATH = package.path, LUA_CPATH = package.cpath }
      local ours = support.run({ "lua5.4", "-e", program }, { stdin = table.concat(values, "\n") .. "\n", env = env })
      local theirs = support.run({ "date", "-f", support.write("dates", table.concat(dates, "\n") .. "\n"), "+%s" }, { env = env })
      assert.equal("", ours.stderr .. theirs.stderr)
      assert.equal(theirs.stdout, ours.stdout)
      local odd = support.run({ "lua5.4", "-e", program }, { stdin = "20250330023000Z\n202503300230\n", env = env })
      assert.matches("^1743301800\n%d+\n$", odd.stdout) -- half past two, which there was not in Berlin
    end)
  end

  it("is refused where there is no such time", function()
    for _, wrong in ipairs { "", "Z", "2025", "202513", "20251301Z", "20250001", "20250100", "20250230", "20250229Z", "21000229",
      "202501012400", "202501012360", "20250101235960", "2025-01-01", " 20250101", "20250101 ", "20250101ZZ", "20250101+1", "-0250101",
      "0x250101", "1e", "2025010112", "never" } do
      refused("is no time", "expiry-time=", wrong)
    end
  end)

  it("lets in before it and not from then on, and the earlier of two counts", function()
    local options = assert(read("expiry-time=", "20300101Z"))
    assert.is_true(admits(options, "10.0.0.1", 1893455999))
    assert.same({ false, "has expired" }, { keyoptions.admit(options, "10.0.0.1", 1893456000) })
    for _, list in ipairs { { "20310101Z", "20300101Z" }, { "20300101Z", "20310101Z" } } do
      local both = keyoptions.read({ { name = "expiry-time=", value = list[1] }, { name = "expiry-time=", value = list[2] } }, GIVEN)
      assert.equal(1893456000, both.expires)
    end
  end)
end)

describe("command=", function()
  it("locks a key to verbs and resources", function()
    local only = assert(read("command=", "GET /status*, get /own/?,* /both")).only
    assert.same({ "GET", "/status*", "GET", "/own/?", "*", "/both" },
      { only[1].verb, only[1].resource, only[2].verb, only[2].resource, only[3].verb, only[3].resource })
  end)

  it("is refused where it is something else", function()
    for _, wrong in ipairs { "", "GET", "/status", "GET status", "POST /status", "GET /a b", "GET /a,", ",GET /a", "GET\n/a b", "/bin/sh",
      "internal-sftp", "GET /a;rm -rf /", "** /a" } do
      refused("^command: .*is no verb and resource", "command=", wrong)
    end
    local twice = { { name = "command=", value = "GET /a" }, { name = "command=", value = "GET /b" } }
    assert.same({ nil, "command: it is given twice" }, { keyoptions.read(twice, GIVEN) })
  end)
end)

describe("environment=", function()
  it("gives roles", function()
    assert.same({ "ops", "reader", "a.b_c:d-1" }, assert(read("environment=", "KORV_ROLES=ops, reader,a.b_c:d-1")).roles)
  end)

  it("is refused where it is something else", function()
    for _, wrong in ipairs { "", "KORV_ROLES", "PATH=/bin", "korv_roles=ops", "KORV_ROLES =ops", " KORV_ROLES=ops", "LD_PRELOAD=x" } do
      refused("^environment: nothing reads this variable", "environment=", wrong)
    end
    for _, wrong in ipairs { "KORV_ROLES=", "KORV_ROLES=ops,", "KORV_ROLES=o ps", "KORV_ROLES=*", "KORV_ROLES=ops,KORV_ROLES=x",
      "KORV_ROLES=öps" } do
      refused("^environment: .*is no role", "environment=", wrong)
    end
  end)
end)

describe("a pattern", function()
  -- As sshd's own, tried in every way.
  local function matches(text, pattern, i, j)
    i, j = i or 1, j or 1
    local char = pattern:sub(j, j)
    if char == "" then return i > #text end
    if char == "*" then return matches(text, pattern, i, j + 1) or (i <= #text and matches(text, pattern, i + 1, j)) end
    return i <= #text and (char == "?" or char == text:sub(i, i)) and matches(text, pattern, i + 1, j + 1)
  end

  local function random_text(alphabet, most)
    local chars = {}
    for i = 1, math.random(0, most) do chars[i] = one_of(alphabet) end
    return table.concat(chars)
  end

  it("means what sshd means by it", function()
    local found = { [true] = 0, [false] = 0 }
    for _ = 1, 20000 do
      local pattern, text = random_text({ "a", "b", ".", "%", "*", "?" }, 6), random_text({ "a", "b", ".", "%" }, 6)
      local expected = matches(text, pattern)
      found[expected] = found[expected] + 1
      assert.equal(expected, keyoptions.pattern(pattern)(text), pattern .. " on " .. text)
    end
    assert.is_true(found[true] > 1000 and found[false] > 1000)
  end)

  it("takes no longer for a text that was made to be slow", function()
    local slow, began = keyoptions.pattern "/a*a*a*a*a*a*a*a*ab", os.clock()
    assert.is_false(slow("/" .. ("a"):rep(65536)))
    assert.is_true(slow("/" .. ("a"):rep(65536) .. "b"))
    assert.is_true(os.clock() - began < support.patience, os.clock() - began)
  end)
end)

-- The oracles -----------------------------------------------------------------------------------------------------------------------

describe("a line with options", function()
  teardown(support.finish)

  -- Options that are known to both, their values made of whatever could end them at the wrong place.
  local function random_value()
    local parts = {}
    for i = 1, math.random(0, 6) do
      parts[i] = one_of { "a", " ", ",", '\\"', "\\", "\\\\", "=", "ssh-rsa AAAA", "#", "no-pty" }
    end
    return table.concat(parts)
  end

  local function random_options()
    local list = {}
    for i = 1, math.random(1, 3) do
      local quote, close = one_of { '"', '"', '"', '"', "" }, one_of { '"', '"', '"', '"', "" }
      list[i] = one_of { "restrict", "no-pty", "NO-PTY", "permitopen=" .. quote .. random_value() .. close,
        'tunnel="' .. random_value() .. '"', 'permitlisten="' .. random_value() .. '"' }
    end
    return (table.concat(list, one_of { ",", ",", ",", ", ", ",,", " " }):gsub(" +$", "")) -- ssh-keygen misses a key behind two spaces
  end

  -- Whatever is accepted here is the key that OpenSSH finds in the line, with the same comment.
  it("is divided as ssh-keygen divides it", function()
    local line = support.read(support.key "oracle" .. ".pub"):gsub("%s*$", "")
    local type, blob = line:match "^(%S+) (%S+)"
    local fingerprint = support.fingerprint(support.key "oracle")
    local lines, accepted = {}, 0
    for i = 1, FULL and 20000 or 1000 do lines[i] = ("%s %s %s c%d"):format(random_options(), type, blob, i) end
    local found = {}
    local listed = support.run { "ssh-keygen", "-l", "-f", support.write("lines", table.concat(lines, "\n") .. "\n") }
    for digest, number in listed.stdout:gmatch "256 (SHA256:%S+) c(%d+) %(ED25519%)\n" do found[tonumber(number)] = digest end
    for i, text in ipairs(lines) do
      local entries = keys.parse(text, "F", GIVEN)
      if entries[1] then
        accepted = accepted + 1
        assert.same({ fingerprint, blob, "c" .. i }, { found[i], entries[1].blob, entries[1].comment }, text)
      end
    end
    assert.is_true(accepted > #lines / 20 and accepted < #lines, accepted)
  end)
end)

describe("what sshd does with a key,", function()
  teardown(support.finish)

  local SOURCES = { "127.0.0.1", "127.0.0.2", "127.0.0.0/8", "127.0.0.2/31", "127.0.0.2/32", "127.0.0.3/32", "10.0.0.0/8", "::1", "127.*",
    "127.0.0.?", "127.0.0.??", "*", "*.2", "*.3", "2001:db8::/32", "0.0.0.0/0", "::/0", "127.0.0.1/8", "127.0.0.0/33", "?27.0.*.*" }

  local function random_from()
    local list = {}
    for i = 1, math.random(1, 3) do list[i] = one_of { "", "", "!" } .. one_of(SOURCES) end
    return ('from="%s"'):format(table.concat(list, ","))
  end

  local function random_expiry()
    local time = os.time() + math.random(-3, 3) * 3600 + 1800
    local format = one_of { "%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S" }
    local zone = one_of { "", "Z" }
    return ('expiry-time="%s%s"'):format(os.date((zone == "Z" and "!" or "") .. format, time), one_of { zone, zone, zone, "X" })
  end

  local FIXED = { 'from="127.0.0.2"', 'from="!127.0.0.2,*"', 'from="*,!127.0.0.2"', 'from="!127.0.0.9,*"', 'from="127.0.0.2/24"', 'from=""',
    'from="127.0.0.2",from="*"', 'from="127.0.0.2",no-pty', 'expiry-time="20991231"', 'expiry-time="20240101Z"',
    'expiry-time="20991231",expiry-time="20240101"',
    "restrict", "unknown", 'unknown="x"', 'from="127.0.0.2', "cert-authority" }

  -- It takes these, and they are refused here: slips that may not mean what they do.
  local STRICTER = { 'expiry-time="20990230"', "restrict,,no-pty", "no-pty,", 'from="127.0.0.2,127.3"' }

  it("is done here", function()
    if not sshd.is_there() then return pending "there is no sshd here" end
    local cases = {}
    local fixed = table.move(FIXED, 1, #FIXED, #STRICTER + 1, { table.unpack(STRICTER) })
    for i = 1, FULL and 200 or 36 do
      local options = fixed[i] or one_of { random_from, random_expiry }()
      local name = "sshd" .. i
      local line = options .. " " .. support.read(support.key(name) .. ".pub")
      local entry = keys.parse(line, "F", GIVEN)[1]
      cases[i] = { options = options, name = name, line = line,
        ours = entry ~= nil and keyoptions.admit(entry.options, "127.0.0.2", os.time()) }
    end
    sshd.try(cases, "127.0.0.2")
    local both = 0
    for i, case in ipairs(cases) do
      assert.equal(case.theirs, case.ours or i <= #STRICTER, case.options)
      assert.is_true(not case.ours or i > #STRICTER, case.options)
      if case.ours then both = both + 1 end
    end
    assert.is_true(both > #cases / 10 and both < #cases)
  end)
end)
