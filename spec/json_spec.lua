--- korv.json as a Lua program sees it. The codec's cases one by one are in spec/c/json_test.c.

local json = require("korv.core").json
local cjson = require "cjson"

local function decode(text)
  return (assert(json.decode(text)))
end

local function encode(value)
  return (assert(json.encode(value)))
end

local function same_number(expected, actual)
  assert.equal(math.type(expected), math.type(actual))
  assert.equal(expected, actual)
end

describe("json.decode", function()
  it("makes int64 integers and everything else floats", function()
    for text, number in pairs {
      ["1"] = 1,
      ["1.0"] = 1.0,
      ["1e3"] = 1000.0,
      ["9007199254740993"] = 9007199254740993,
      ["-9223372036854775808"] = math.mininteger,
      ["9223372036854775807"] = math.maxinteger,
      ["9223372036854775808"] = 2.0 ^ 63,
      ["18446744073709551615"] = 2.0 ^ 64,
      ["0.1"] = 0.1,
      ["1795330870.6222768"] = 1795330870.6222768,
      ["1.7976931348623157e308"] = 1.7976931348623157e308,
    } do
      same_number(number, decode(text))
    end
  end)

  it("keeps the sign of zero", function()
    assert.equal(-math.huge, 1 / decode "-0")
    assert.equal("float", math.type(decode "-0"))
    assert.equal(math.huge, 1 / decode "0.0")
  end)

  it("has null as cjson has it", function()
    assert.equal(cjson.null, json.null)
    assert.equal(json.null, decode "null")
    assert.same({ a = { json.null } }, decode [[{"a":[null]}]])
  end)

  it("marks arrays, empty ones too, and objects not", function()
    local mark = getmetatable(json.array {})
    assert.is_table(mark)
    assert.equal(mark, getmetatable(decode "[]"))
    assert.equal(mark, getmetatable(decode("[[1]]")[1]))
    assert.is_nil(getmetatable(decode "{}"))
  end)

  it("takes the last of the members with one name", function()
    assert.same({ a = 3 }, decode [[{"a":1,"\u0061":{"a":2},"a":3}]])
  end)

  it("decodes a list that is longer than Lua's C stack, and a string that is longer than any buffer", function()
    local list = decode("[" .. ("0,"):rep(100000) .. "1]")
    assert.equal(100001, #list)
    assert.equal(1, list[100001])
    assert.equal(("\n"):rep(100000), decode('"' .. ("\\n"):rep(100000) .. '"'))
  end)

  it("fails with a message that says where and what was expected", function()
    for text, message in pairs {
      [""] = "line 1, column 1: expected a value, found the end of the text",
      ["[1,]"] = "line 1, column 4: expected a value, found ']'",
      ["{\n\"é\": tru}"] = "line 2, column 6: expected a value, found 't'",
      ["[1e400]"] = "line 1, column 2: expected a number up to 1.7976931348623157e308",
      ['"\\ud800"'] = "line 1, column 2: expected a pair of surrogates, a high one and then a low one, found only '\\ud800'",
      ['"\xff"'] = "line 1, column 2: expected valid UTF-8, found the byte 0xff",
      [("["):rep(129)] = "line 1, column 129: expected at most 128 levels of nesting",
    } do
      assert.same({ nil, message, "EJSON", n = 3 }, table.pack(json.decode(text)))
    end
  end)

  it("raises where the argument is no string", function()
    assert.error_matches(function() json.decode() end, "bad argument #1 to 'decode' %(string expected, got no value%)")
    assert.error_matches(function() json.decode(12) end, "bad argument #1 to 'decode' %(string expected, got number%)")
  end)
end)

describe("json.encode", function()
  it("writes integers as they are, and floats with the fewest digits that read back, as floats", function()
    for _, case in ipairs {
      { 9007199254740993, "9007199254740993" }, { math.mininteger, "-9223372036854775808" },
      { 2.0, "2.0" }, { -0.0, "-0.0" }, { 0.1, "0.1" }, { 0.1 + 0.2, "0.30000000000000004" }, { 1 / 3, "0.3333333333333333" },
      { 1e15, "1e+15" }, { 1e300, "1e+300" }, { 2.0 ^ 53, "9007199254740992.0" }, { 1795330870.6222768, "1795330870.6222768" },
    } do
      assert.equal(case[2], encode(case[1]))
    end
  end)

  it("writes null for json.null, cjson.null and nil", function()
    assert.equal("[null,null]", encode { json.null, cjson.null })
    assert.equal("null", encode(nil))
  end)

  it("writes a sequence or a marked table as an array, anything else as an object", function()
    assert.equal("[1,2,3]", encode { 1, 2, 3 })
    assert.equal("[1,2,3]", encode { [3] = 3, [2] = 2, [1] = 1 })
    assert.equal("{}", encode {})
    assert.equal("[]", encode(json.array()))
    assert.equal("[]", encode(json.array {}))
    assert.equal('{"1":"one"}', encode { ["1"] = "one" })
    assert.equal('[{},[],{"a":[]}]', encode { {}, json.array {}, { a = json.array() } })
  end)

  it("escapes what must be, and no slash", function()
    assert.equal([["/\"\\\b\f\n\r\t\u0000\u001f]] .. "\x7fé\"", encode '/"\\\b\f\n\r\t\0\31\x7fé')
  end)

  it("looks at a table's content and calls no metamethod", function()
    local function never() error "called" end
    local meta = { __index = never, __len = never, __pairs = never, __name = never, __tostring = never, __metatable = "mine" }
    assert.equal("[1,2]", encode(setmetatable({ 1, 2 }, meta)))
    assert.equal('{"a":1}', encode(setmetatable({ a = 1 }, meta)))
  end)

  it("fails with a message that names the path", function()
    local cycle = {}
    cycle.self = cycle
    for message, value in pairs {
      ["value: a function has no JSON form"] = print,
      ["value.items[3].when: a function has no JSON form"] = { items = { 1, 2, { when = print } } },
      ['value["odd key"][1]: a thread has no JSON form'] = { ["odd key"] = { coroutine.create(print) } },
      ["value.x: NaN has no JSON form"] = { x = 0 / 0 },
      ["value[1]: an infinite number has no JSON form"] = { -math.huge },
      ["value.a: a string that is not valid UTF-8 has no JSON form"] = { a = "\xc3" },
      ["value: a key that is not valid UTF-8 has no JSON form"] = { ["\xc3"] = 1 },
      ["value: a table of integer and string keys has no JSON form"] = { 1, a = 2 },
      ["value: a table of boolean keys has no JSON form"] = { [true] = 1 },
      ["value: an array with a hole has no JSON form (2 is missing of 1 to 3)"] = { 1, nil, 3 },
      ["value: an array with string keys has no JSON form"] = json.array { a = 1 },
      ["value..." .. (".self"):rep(29) .. ": more than 128 levels of nesting have no JSON form (is there a cycle?)"] = cycle,
      ["value: its JSON form is larger than 16777216 bytes"] = ("x"):rep(16 << 20),
    } do
      assert.same({ nil, message, "EJSON", n = 3 }, table.pack(json.encode(value)))
    end
  end)

  it("works again after a failure, and after a large value", function()
    assert.is_nil(json.encode { 1, print })
    assert.equal(16 << 20, #encode(("x"):rep((16 << 20) - 2)))
    assert.equal("[1]", encode { 1 })
  end)

  it("can be used by a finalizer that runs while a text is made", function()
    local ran = 0
    for i = 1, 2000 do
      setmetatable({}, { __gc = function() ran = ran + #encode { i } // #tostring { i } + 1 end })
      assert.equal('{"a":"' .. ("x"):rep(200) .. '"}', encode { a = ("x"):rep(200) })
    end
    collectgarbage()
    assert.equal(2000, ran)
  end)

  it("raises where there is no argument", function()
    assert.error_matches(function() json.encode() end, "bad argument #1 to 'encode' %(value expected%)")
  end)
end)

describe("json.array", function()
  it("marks the table that it gets, and gives it back", function()
    local list = { 1 }
    assert.equal(list, json.array(list))
    assert.equal(list, json.array(list))
    assert.equal("[1]", encode(list))
  end)

  it("makes a new one of nothing", function()
    assert.same({}, json.array())
    assert.not_equal(json.array(nil), json.array(nil))
  end)

  it("raises where it gets something else", function()
    assert.error_matches(function() json.array "x" end, "bad argument #1 to 'array' %(table expected, got string%)")
    assert.error_matches(function() json.array(setmetatable({}, {})) end,
      "bad argument #1 to 'array' %(this table has a metatable of its own; pass a table without one%)")
  end)
end)

describe("a value", function()
  it("comes back as it went", function()
    for _, text in ipairs {
      "9007199254740993", "-9223372036854775808", "0.1", "1.7976931348623157e+308", "[]", "{}", "[[]]", "null", "-0.0", '"\\u0000"',
      '{"a":[{"b":[]},1,1.0,"é",true,false,null]}',
    } do
      assert.equal(text, encode(decode(text)))
    end
  end)
end)

describe("lua-cjson", function()
  -- What cjson keeps: floats of 14 digits, integers that are floats, strings, objects, arrays that are not empty.
  local function random_value(depth)
    local kind = math.random(depth > 0 and 7 or 5)
    if kind == 1 then return math.random(-1000000, 1000000) / 1.0 end
    if kind == 2 then return tonumber(("%.14g"):format(math.random() * 10.0 ^ math.random(-20, 20))) end
    if kind == 3 then return utf8.char(math.random(0, 0xd7ff), math.random(0xe000, 0x10ffff), math.random(0, 127)) end
    if kind == 4 then return math.random(2) == 1 end
    if kind == 5 then return json.null end
    local value = {}
    for i = 1, math.random(10) do value[kind == 6 and i or "k" .. i] = random_value(depth - 1) end
    return value
  end

  setup(function()
    math.randomseed(20240229)
    cjson.encode_number_precision(14)
  end)

  it("reads what korv writes", function()
    for _ = 1, 500 do
      local value = random_value(4)
      assert.same(value, cjson.decode(encode { value })[1])
    end
  end)

  it("writes what korv reads", function()
    for _ = 1, 500 do
      local value = random_value(4)
      assert.same(value, decode(cjson.encode { value })[1])
    end
  end)

  it("refuses what korv refuses, but for what it lets through", function()
    for _, text in ipairs { "", "[1,]", "{", '{"a"}', "nul", '"\\x"', '"\\ud800"', "[1}", "{}{}", "\xef\xbb\xbf{}", ("["):rep(1001) } do
      assert.is_false((pcall(cjson.decode, text)))
      assert.is_nil(json.decode(text))
    end
    for _, text in ipairs { "[NaN]", "[0x10]", "[01]", "[1.]", "[1e400]", '["\n"]', '["\xff"]' } do
      assert.is_true((pcall(cjson.decode, text)))
      assert.is_nil(json.decode(text))
    end
  end)
end)
