import threading

from ensemblehub.generators.text.lru_cache import LRUCache


def test_what_was_asked_last_is_kept_up_to_a_weight():
    asked = []

    def square(number):
        asked.append(number)
        return number * number

    squares = LRUCache(square, lambda found, number: number, 10)
    assert [squares(number) for number in (3, 4, 3, 3)] == [9, 16, 9, 9]
    assert asked == [3, 4]
    squares(5)  # 4 goes: 3 was asked after it
    assert squares.weight == 8
    assert [squares(3), squares(5)] == [9, 25]
    assert asked == [3, 4, 5]
    squares(4)
    assert asked == [3, 4, 5, 4]


def test_what_is_too_heavy_is_not_kept_and_drives_nothing_out():
    squares = LRUCache(lambda number: number * number, lambda found, number: number, 10)
    squares(7)
    assert squares(11) == 121
    assert squares.weight == 7


def test_threads_that_ask_the_same_at_once_keep_it_once():
    gate = threading.Barrier(4)

    def slow(number):
        gate.wait()
        return number

    same = LRUCache(slow, lambda found, number: 1, 10)
    threads = [threading.Thread(target=same, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same.weight == 1
